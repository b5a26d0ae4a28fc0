"""From the files that people have (tables, workbooks, Parquet, JSON, datasets) to JSON Lines, and back to others' forms."""
