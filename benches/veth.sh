#!/usr/bin/env bash
# How many frames of 64 bytes a second come back over a cable, and after how long, beside the
# kernel's own forwarding, its NAT, and AF_XDP without a balancer: all in one run.
#
#   gen: sends and counts ── veth, one queue ── dut: forwards, and sends back by the same cable
#
# Needs root. SECONDS_EACH=3, ROUNDS=3, PROFILE=dist and ONLY='a part of names' can be set. The sender has the last CPU; what runs in user
# space on the other side has the first. The kernel does its work where packets arrive: on the
# sender's CPU, which its numbers have to share.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "veth.sh: needs root: it makes network namespaces" >&2; exit 1; }
SECONDS_EACH=${SECONDS_EACH:-3} ROUNDS=${ROUNDS:-3} PROFILE=${PROFILE:-dist}

cargo build -q --profile "$PROFILE" -p slb -p slb-benches
bin=$PWD/target/$PROFILE last=$(($(nproc) - 1))
state=$(mktemp -d) gen="slbv$$-gen" dut="slbv$$-dut"
forwarder=
finish() {
    [ -z "$forwarder" ] || kill "$forwarder" 2>/dev/null || true
    ip netns del "$gen" 2>/dev/null || true
    ip netns del "$dut" 2>/dev/null || true
    rm -rf "$state"
}
trap finish EXIT

in_gen() { ip netns exec "$gen" taskset -c "$last" "$@"; }
in_dut() { ip netns exec "$dut" "$@"; }

ip netns add "$gen"
ip netns add "$dut"
ip link add gen0 netns "$gen" numtxqueues 1 numrxqueues 1 type veth \
    peer name dut0 netns "$dut" numtxqueues 1 numrxqueues 1
in_gen ethtool -K gen0 tx off rx off gro off gso off tso off >/dev/null
in_dut ethtool -K dut0 tx off rx off gro off gso off tso off >/dev/null
in_gen ip link set gen0 address 02:00:00:00:00:02 up
in_dut ip link set dut0 address 02:00:00:00:00:01 up
in_dut ip address add 10.1.0.1/24 dev dut0
in_dut ip neighbour add 10.1.0.2 lladdr 02:00:00:00:00:02 dev dut0
in_dut sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 \
    net.ipv4.conf.dut0.send_redirects=0 net.ipv4.conf.all.rp_filter=0
in_dut ip route add 198.18.0.0/16 via 10.1.0.2
# What comes back is counted by the interface, and goes no further.
in_gen nft -f - <<'END'
table netdev count { chain everything { type filter hook ingress device gen0 priority 0; policy drop; }; }
END
received() { in_gen cat /sys/class/net/gen0/statistics/rx_packets; }

configuration() { # configuration FLOWS
    cat <<END
[node]
role = "mux"
underlay = "10.1.0.1"
mtu = 1600
flows = $1
[[frontend]]
name = "vip"
address = "20.20.20.100"
[[pool]]
name = "hosts"
vni = 5001
backends = [
  { name = "a", address = "10.10.0.1", host = "198.18.0.1" },
  { name = "b", address = "10.10.0.2", host = "198.18.0.2" },
  { name = "c", address = "10.10.0.3", host = "198.18.0.3" },
]
[[rule]]
name = "all"
frontend = "vip"
pool = "hosts"
protocol = "udp"
frontend_port = 9
END
}
configuration 0 >"$state/stateless.toml"
configuration 1048576 >"$state/flows.toml"

run() { # run COMMAND...: a forwarder on the first CPU
    # Without a shell around it, so that what is ended is the forwarder.
    ip netns exec "$dut" taskset -c 0 "$@" >/dev/null &
    forwarder=$!
}
mux() { # mux NAME OPTIONS...
    local config=$state/$1.toml
    shift
    run "$bin/slb" mux --config "$config" --io afxdp:dut0 --status "$state/sock" --log-level error "$@"
}

start() { # start NAME: has a forwarder run, and says where it takes packets for
    local to=20.20.20.100
    case $1 in
        "kernel, forwarding") to=198.18.0.9 ;;
        "kernel, nftables DNAT")
            in_dut nft -f - <<'END'
table ip nat { chain in { type nat hook prerouting priority dstnat; ip daddr 20.20.20.100 dnat to 198.18.0.9; }; }
END
            ;;
        "AF_XDP alone, this project's") run "$bin/slb-veth" l2fwd dut0 ;;
        "AF_XDP alone, the crate xdp") run "$bin/slb-veth" l2fwd-xdp dut0 ;;
        "AF_XDP alone, never waiting") run "$bin/slb-veth" l2fwd --busy dut0 ;;
        "slb mux, stateless") mux stateless ;;
        "slb mux, flow table") mux flows ;;
        "slb mux, never waiting") mux flows --busy ;;
    esac
    address=$to
    sleep 0.7
}
stop() {
    if [ -n "$forwarder" ]; then
        kill "$forwarder" 2>/dev/null && wait "$forwarder" 2>/dev/null || true
        forwarder=
        sleep 0.3 # the kernel lets go of a queue a while after its owner has ended
    fi
    in_dut nft flush ruleset
}

names=("kernel, forwarding" "kernel, nftables DNAT" "AF_XDP alone, this project's"
    "AF_XDP alone, the crate xdp" "AF_XDP alone, never waiting" "slb mux, stateless"
    "slb mux, flow table" "slb mux, never waiting")
for round in $(seq "$ROUNDS"); do
    for name in "${names[@]}"; do
        [[ $name == *"${ONLY:-}"* ]] || continue
        start "$name"
        in_gen "$bin/slb-veth" send gen0 02:00:00:00:00:01 "$address" 0.3 >/dev/null
        before=$(received)
        sleep 0.3
        sent=$(in_gen "$bin/slb-veth" send gen0 02:00:00:00:00:01 "$address" "$SECONDS_EACH")
        sleep 0.1
        echo "$name|$sent|$((($(received) - before)))" >>"$state/rates"
        [ "$round" != 1 ] || echo "$name|$(in_gen "$bin/slb-veth" latency gen0 02:00:00:00:00:01 "$address" "$SECONDS_EACH")" >>"$state/latencies"
        stop
    done
done

awk -F'|' -v seconds="$SECONDS_EACH" '
    NR == FNR { split($2, a, " "); p50[$1] = a[1]; p99[$1] = a[2]; p999[$1] = a[3]; lost[$1] = a[4]; next }
    !($1 in n) { order[++count] = $1 }
    { rate = $3 / seconds; n[$1]++; if (rate > best[$1]) best[$1] = rate; all[$1, n[$1]] = rate; if ($2 > sent[$1]) sent[$1] = $2 }
    END {
        bare = best["AF_XDP alone, this project'"'"'s"]
        printf "%-32s %12s %12s %8s %9s %9s %9s\n", "64-byte frames, one queue", "M/s offered", "M/s back", "of bare", "p50 us", "p99 us", "p99.9 us"
        for (i = 1; i <= count; i++) {
            name = order[i]
            printf "%-32s %12.3f %12.3f %8.2f %9s %9s %9s\n", name, sent[name] / 1e6, best[name] / 1e6, bare ? best[name] / bare : 0, p50[name], p99[name], p999[name]
        }
    }' "$state/latencies" "$state/rates"
