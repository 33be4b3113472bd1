"""Contract tests for what others can add: inherit one, say what is new, and pytest runs it."""
