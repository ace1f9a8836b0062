"""Which release a deployment is told to serve."""

from tiny_release import publish_tiny_release

from gemel_ray.serving.options import parse_options
from gemel_ray.serving.releases import with_release
from gemel_ray.weights.store import open_store


def test_a_deployment_stays_with_the_release_of_today_unless_it_is_told_otherwise(tmp_path):
    def release_of(**more):
        return with_release(parse_options({"store": str(tmp_path / "store"), **more})).release

    assert release_of() is None, "each engine finds out for itself where the store cannot be read from here"
    publish_tiny_release(tmp_path / "store", ("north_cars",))
    assert (release_of(), release_of(release=2), release_of(watch=True)) == (1, 2, None)
    publish_tiny_release(tmp_path / "store", ("north_cars",), seed=8)
    assert release_of() == 2
    open_store(tmp_path / "store").set_pin(1)
    assert release_of() == 1
