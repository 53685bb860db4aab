"""A real S3 server, moto, with a bucket, and in it under some/where the files of the folder that is named, if one is. Says where it
listens, and stays until its input ends."""

import os
import sys

import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
s3 = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
s3.create_bucket(Bucket="bucket")
for folder in sys.argv[1:]:
    for name in os.listdir(folder):
        s3.upload_file(os.path.join(folder, name), "bucket", f"some/where/{name}")
print(f"{host}:{port}", flush=True)
sys.stdin.read()
