"""A merge search as a Ray job: `ray job submit --working-dir . -- python jobs/merge_search.py WORKLOAD --store URI`.

Takes the options of `gemel search` and connects to the cluster the job runs on.
"""

import sys

from gemel_ray.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["search"]
    main()
