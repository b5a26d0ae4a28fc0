"""A run for people: what happened (`history`), as a web page (`run_page`), as text on a terminal (`text_chart`)."""
