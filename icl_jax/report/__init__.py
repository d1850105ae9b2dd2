"""Reports from saved records: figures as SVG, one self-contained page, tables in the terminal.

``figures`` draws, ``page`` writes the HTML file, ``terminal`` prints the page's tables. Nothing
here computes a result, and nothing here imports JAX.
"""
