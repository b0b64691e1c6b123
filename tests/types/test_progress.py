from mixdq.types.progress import Progress, no_progress


def test_the_default_progress_takes_what_every_progress_takes() -> None:
    report: Progress = no_progress
    report(0, 10, "calibration")
    report(done=10, total=10, what="calibration")
