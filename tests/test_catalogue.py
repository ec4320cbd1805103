from maypole import catalogue


def test_thirty_three_systems_with_unique_ids_in_known_rooms():
    assert len(catalogue.SYSTEMS) == 33
    assert len({s.id for s in catalogue.SYSTEMS}) == 33
    assert {s.room for s in catalogue.SYSTEMS} == set(catalogue.ROOMS)


def test_entries_follow_the_naming_rule():
    for s in catalogue.SYSTEMS:
        assert s.entry.startswith(f"maypole.{s.room}.{s.id.replace('-', '_')}:")
