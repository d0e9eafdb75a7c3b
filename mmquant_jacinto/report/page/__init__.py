"""Page: what a browser shows of a report; template, style and script are beside it."""
