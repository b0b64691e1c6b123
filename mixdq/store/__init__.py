"""The files of a run: each begins with its schema and what it was made from, is written whole or not at all, and is
read with suspicion.

`artifact` has what all share; `json_file` the plain ones (receipts, evaluations); `plan_file` plans in TOML;
`table_file` layers.json and sensitivity.csv, the one file that grows row by row; `record_file` calibration, the only
one with torch; `sketch_file` the vectors of a sketch. What the values mean is the business of `mixdq.types`. Nothing
is ever pickled.
"""
