"""Two reports side by side: what moved between two runs, and whether anything became worse."""
