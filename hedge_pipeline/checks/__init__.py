"""Rules as named claims about what is stored.

Those about a session's rows count what breaks them, session by session; those about models, files
and room say in words what is wrong.
"""
