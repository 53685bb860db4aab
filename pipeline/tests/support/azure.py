"""Microsoft's client of azurite's container `bucket`: URL make "" | fill FOLDER | put NAME | list PREFIX.

`fill` makes it with the files of a folder below some/where; `list` prints names, and SHA-256 of those below a prefix."""

import hashlib
import json
import pathlib
import sys

from azure.storage.blob import BlobServiceClient
key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
credential = {"account_name": "devstoreaccount1", "account_key": key}
bucket = BlobServiceClient(sys.argv[1] + "/devstoreaccount1", credential=credential).get_container_client("bucket")
what, word = sys.argv[2:]
if what == "make":
    bucket.create_container()
elif what == "fill":
    bucket.create_container()
    for file in pathlib.Path(word).iterdir():
        bucket.upload_blob("some/where/" + file.name, file.read_bytes())
elif what == "put":
    bucket.upload_blob(word, b"")
else:
    names = [blob.name for blob in bucket.list_blobs()]
    read = lambda name: bucket.download_blob(name).readall()
    print(json.dumps({name: name.startswith(word) and hashlib.sha256(read(name)).hexdigest() or "" for name in names}))
