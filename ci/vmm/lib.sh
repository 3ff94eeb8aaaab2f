# For the scenarios in a host: runs a VMM until its guest has said its verdict. Sourced by busybox's sh.

# say WORD…: a line of the scenario's.
say() { echo "vmm: $*"; }

# watch LOG PROCESS: shows what the guest prints, until its verdict, for at most 10 minutes. Returns 1 without one.
watch() {
    shown=0
    for second in $(seq 600); do
        lines=$(wc -l < "$1")
        [ "$lines" -le $shown ] || sed -n "$((shown + 1)),${lines}p" "$1" | tr -d '\r'
        shown=$lines
        grep -q -a '^DATA ' "$1" && return 0
        kill -0 "$2" 2> /dev/null || break
        sleep 1
    done
    tail -n 5 "$1"
    return 1
}

# verdict LOG: the guest's.
verdict() { tr -d '\r' < "$1" | sed -n 's/^DATA //p' | head -n 1; }

# locked PROCESS: the bytes that the kernel counts as locked by it.
locked() { awk '/^VmLck:/ { print $2 * 1024 }' "/proc/$1/status"; }

# count NAME: a number of the shim's status.
count() { tr ' ' '\n' < /tmp/status | sed -n "s/^$1=//p"; }

end() {
    kill "$1" 2> /dev/null
    wait "$1" 2> /dev/null
}
