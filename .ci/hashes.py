"""Turn pip's report on what it would install into requirements with hashes."""

import json
import sys

for package in json.load(sys.stdin)["install"]:
    names, hashes = package["metadata"], package["download_info"]["archive_info"]["hashes"]
    sys.stdout.write(f"{names['name']}=={names['version']} --hash=sha256:{hashes['sha256']}\n")
