"""Reports of a run: its history (`history`), a web page (`run_page`), a chart for terminals (`text_chart`)."""
