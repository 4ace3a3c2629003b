"""Side-by-side comparisons: each script prints its own table, and says in its first line what it compares."""
