"""People rate answers without knowing whose they are: pages, sheets, and what their ratings say."""
