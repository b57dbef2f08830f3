"""Cuts a text classifier in several rounds, and distils the student after each."""
