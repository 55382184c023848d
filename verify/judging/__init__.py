"""A request becomes a report here: options, ports, the one way to what is judged, and verdicts."""
