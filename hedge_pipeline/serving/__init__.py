"""What is said of a bar: the probability of a model, and whether a level makes it a signal.

`predicting` makes the rows of the log from features and the models in force, `signalling` adds what
hedge levels say of them. They serve every way a session is processed: live, backfill and replay.
"""
