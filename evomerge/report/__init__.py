"""One HTML file, or a live page, that shows what a run found.

`data.report_data` reads a run into one JSON-ready mapping; `page.render` puts it, the scripts and
plotly.js into a page that needs no network; `live.serve` shows a page that follows a run.
Nothing here takes the run's lease or opens a model.
"""
