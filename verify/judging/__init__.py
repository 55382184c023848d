"""From a request to a report: options, ports, the one way to what is judged, and verdicts."""
