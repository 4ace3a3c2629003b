"""Pictures of drift: plots on data frames, and one self-contained HTML page of several models side by side."""
