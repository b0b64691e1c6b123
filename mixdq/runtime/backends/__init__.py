"""One file for each backend; `mixdq.runtime.select.BACKENDS` lists them in order of preference."""
