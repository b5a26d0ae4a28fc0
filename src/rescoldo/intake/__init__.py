"""Import of tables, workbooks, Parquet and JSON to JSON Lines, and export to the formats of other programs."""
