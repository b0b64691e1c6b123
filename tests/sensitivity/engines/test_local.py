from mixdq.sensitivity.desk import Desk, Slice
from mixdq.sensitivity.engines.local import run_local


def test_tasks_are_done_one_by_one_in_order_and_only_when_asked_for(case) -> None:
    ran: list[str] = []

    def note(desk: Desk, task: str) -> str:
        ran.append(task)
        return f"{task} at {desk is own}"

    own = Desk(case.scorer)
    with run_local(own) as team:
        assert team.workers == 1
        results = team.map(note, ["a", "b", "c"])
        assert ran == []
        assert next(results) == "a at True"
        assert ran == ["a"]
        assert list(results) == ["b at True", "c at True"]
        assert list(team.map(Desk.products, list[Slice]())) == []
