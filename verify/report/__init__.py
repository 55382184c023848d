"""How a run is told: to a person (terminal), to a program (JSON), to a CI server (JUnit).

Each module turns a ``gpt_verify.findings.Report`` into text and does nothing else; ``output`` puts
text into a file as a whole or not at all.
"""
