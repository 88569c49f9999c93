"""Error rates, coverage and power of what verdicts and analyses say, by simulation."""
