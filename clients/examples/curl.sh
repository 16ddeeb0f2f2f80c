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
                    "data": ["A wonderful film, moving and beautifully acted. I loved every minute of it."]}],
        "outputs": [{"name": "label"}, {"name": "probabilities"}]
    }')
echo "$answer"

case $answer in
*'"data":["pos"]'*) echo "ok" ;;
*)
    echo "WRONG: the label should be pos" >&2
    exit 1
    ;;
esac
