"""From the files that people have (tables, workbooks, Parquet, JSON) to JSON Lines, and back to others' forms."""
