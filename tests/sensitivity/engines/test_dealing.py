from hypothesis import given
from hypothesis import strategies as st

from mixdq.sensitivity.engines.dealing import Deal


@given(
    count=st.integers(0, 30),
    ahead=st.integers(1, 12),
    workers=st.integers(1, 5),
    chances=st.randoms(use_true_random=False),
)
def test_whatever_workers_do_every_result_comes_once_and_in_order(count, ahead, workers, chances) -> None:
    deal: Deal[str] = Deal(count, ahead)
    at: list[int | None] = [None] * workers
    taken: list[str] = []
    losses = 3 * count
    while not deal.finished:
        for worker in range(workers):
            if at[worker] is None:
                at[worker] = deal.deal()
                if at[worker] is not None:
                    assert len(taken) <= at[worker] < min(count, len(taken) + ahead)
        busy = [worker for worker in range(workers) if at[worker] is not None]
        # Or the work would stand still for ever.
        assert busy
        assert all(at.count(piece) <= 2 for piece in at if piece is not None)
        worker = chances.choice(busy)
        piece, at[worker] = at[worker], None
        if losses and chances.random() < 0.3:
            losses -= 1
            deal.lose(piece)
        else:
            deal.finish(piece, f"of {piece}")
        taken += deal.take()
    assert taken == [f"of {piece}" for piece in range(count)]
    assert deal.deal() is None


def test_work_of_the_dead_comes_first_then_what_is_new_then_what_one_alone_is_at() -> None:
    deal: Deal[int] = Deal(4, ahead=3)
    assert [deal.deal() for _ in range(3)] == [0, 1, 2]
    deal.lose(1)
    assert deal.deal() == 1
    # Piece 3 is not dealt while 0 is missing; instead 0 is done twice, but not three times.
    assert [deal.deal() for _ in range(4)] == [0, 1, 2, None]
    deal.finish(0, 10)
    assert list(deal.take()) == [10]
    assert deal.deal() == 3


def test_the_first_of_two_results_counts_and_a_late_loss_changes_nothing() -> None:
    deal: Deal[str] = Deal(2, ahead=1)
    assert (deal.deal(), deal.deal()) == (0, 0)
    deal.finish(0, "first")
    deal.finish(0, "second")
    deal.lose(0)
    assert list(deal.take()) == ["first"]
    assert deal.deal() == 1
