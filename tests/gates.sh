#!/usr/bin/env bash
# The four nbdev gates: a clean tree, nbdev_clean and nbdev_export change nothing, nbdev_test passes.
# With CI=true the tree must be clean to begin with; a developer's own changes are compared before and after instead.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
workers=${GATE_WORKERS:-2}

# What git sees plus a hash of each notebook and module: a change to a file that already differs counts too.
state() { git status --porcelain; git ls-files -z --cached --others --exclude-standard -- nbs mcft | xargs -0 sha256sum; }

# gate NAME FIX COMMAND...: the command must leave the tree as it is.
gate() {
    local name=$1 fix=$2 before after; shift 2
    before=$(state)
    "$@"
    after=$(state)
    if [ "$before" != "$after" ]; then
        echo "gate $name: failed; it changed"; diff <(echo "$before") <(echo "$after") | sed -n 's/^> .* //p' | sort -u
        echo "$fix"; exit 1
    fi
    echo "gate $name: ok"
}

if [ "${CI:-}" = true ] && [ -n "$(git status --porcelain)" ]; then
    echo "gate clean tree: failed; these files are not committed:"; git status --porcelain; exit 1
fi
gate nbdev_clean "Run $bin/nbdev_clean and commit the notebooks." $bin/nbdev_clean
gate nbdev_export "Run $bin/nbdev_export and commit mcft/ with its notebooks." $bin/nbdev_export
gate nbdev_test "A notebook's test writes into the repository: let it write into runs/ or a temporary folder." \
    $bin/nbdev_test --n_workers "$workers" --timing
