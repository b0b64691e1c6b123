"""From scores and a budget to bit plans, exactly; names and numbers only, no tensor and no model.

`program` is the integer program, `problem` states it for a layer table, `protect` names the activations that stay in
floating point, `sweep` solves it for a range of content-to-quality ratios, `plans` builds uniform plans and counts
what a plan costs. Which of the plans is best is decided on pictures, in `mixdq.selection`.
"""
