"""The paper's experiments: its numbers, our runs, tables, figures and pages."""
