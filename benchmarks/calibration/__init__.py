"""How often verdicts and effects err: simulations of the rules with the code that judges (docs/statistics.md)."""
