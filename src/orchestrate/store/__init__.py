"""The store: one database of runs and of all that is kept of them, SQLite or Postgres."""
