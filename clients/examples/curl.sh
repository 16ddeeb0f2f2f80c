#!/bin/sh
# One question with nothing but curl: sh clients/examples/curl.sh [--url HOST:PORT]
set -eu

url=127.0.0.1:8000
if [ "${1:-}" = "--url" ]; then
    url=$2
fi

answer=$(curl --silent --show-error --max-time 30 "http://$url/v2/models/review_polarity/infer" \
    --header 'Content-Type: application/json' \
    --data '{
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1],
                    "data": ["Great phone, excellent sound and the battery lasts for days. I love it."]}],
        "outputs": [{"name": "label"}, {"name": "probabilities"}]
    }')
echo "$answer"

case $answer in
*'"data":["positive"]'*) echo "ok" ;;
*)
    echo "WRONG: the label should be positive" >&2
    exit 1
    ;;
esac
