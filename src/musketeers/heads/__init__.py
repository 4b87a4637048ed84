"""Stage 3 in other ways than ART: models of a target that are told what other domains know."""
