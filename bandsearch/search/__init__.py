"""Floor 3: what to try next, what to stop, and which candidate is handed over. The one door to Optuna and Ray Tune.

Everything that decides (`candidates`, `baselines`, `proposer`, `halving`, `campaign`, `finalists`, `evidence`,
`decision`) is plain code over values: it runs on tabulated results as well as on engines. Ray Tune only carries it out.
"""
