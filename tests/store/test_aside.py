from mixdq.store.aside import aside, kept_aside, name_aside


def test_nothing_that_is_put_aside_is_lost(tmp_path) -> None:
    path = tmp_path / "a.csv"
    for number in (1, 2):
        path.write_text(str(number))
        assert name_aside(path) == tmp_path / f"a.old{number}.csv" == aside(path)
    assert [(tmp_path / f"a.old{n}.csv").read_text() for n in (1, 2)] == ["1", "2"]
    assert kept_aside(path) == [tmp_path / f"a.old{n}.csv" for n in (1, 2)]
    (tmp_path / "a.old1.csv").unlink()
    (tmp_path / "a.old10.csv").touch()
    (tmp_path / "a.oldest.csv").touch()
    assert kept_aside(path) == [tmp_path / f"a.old{n}.csv" for n in (2, 10)]
    assert kept_aside(tmp_path / "b.csv") == kept_aside(tmp_path / "nowhere" / "a.csv") == []
