"""Rules as named claims: each counts the rows that break it and says which partition."""
