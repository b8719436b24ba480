#!/usr/bin/env bash
# Runs the tests, or `bench` or `soak`, with everything they need: installs what
# is missing where that is allowed (root or sudo, apt), starts a Docker engine of
# its own when none answers, and stops it again. Without root it says what it
# leaves out and runs the rest. VENDETTA_TEST_PROVIDERS names the providers that
# must be there; one that is named and missing is a failure.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '== %s\n' "$*" >&2; }

sudo=()
may_install=no
if [ "$(id -u)" = 0 ]; then
  may_install=yes
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  sudo=(sudo -n)
  may_install=yes
fi

# Each needed program with the Debian package that brings it.
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need dockerd docker.io
need docker docker.io
need iptables iptables
need sshd openssh-server
need ssh openssh-client
need ip iproute2
need git git
need gcc gcc
need qemu-system-x86_64 qemu-system-x86
need qemu-img qemu-utils
need mkfs.ext4 e2fsprogs
need debootstrap debootstrap
[ -e /bin/busybox ] || missing+=(busybox-static)
need lxc-start lxc
need newuidmap uidmap
need pkg-config pkg-config
[ -e /usr/include/lxc/lxccontainer.h ] || missing+=(lxc-dev)
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$may_install" = yes ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    say "not installed, and this user may not install: ${missing[*]}; tests that need them are left out"
  fi
fi

# A Docker engine of our own, in folders of its own, when none answers.
scratch=
dockerd_pid=
stop() {
  status=$?
  if [ -n "$dockerd_pid" ]; then
    kill "$dockerd_pid" 2>/dev/null || true
    wait "$dockerd_pid" 2>/dev/null || true
  fi
  if [ -n "$scratch" ]; then
    rm -rf "$scratch" 2>/dev/null || say "could not remove $scratch"
  fi
  exit "$status"
}
trap stop EXIT

if ! docker version >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v dockerd >/dev/null; then
  say "starting a Docker engine for the tests"
  scratch=$(mktemp -d /tmp/vtest.XXXXXX)
  export DOCKER_HOST="unix://$scratch/docker.sock"
  dockerd --host "$DOCKER_HOST" --data-root "$scratch/data" --exec-root "$scratch/exec" \
    --pidfile "$scratch/pid" --max-download-attempts 1 >"$scratch/log" 2>&1 &
  dockerd_pid=$!
  for _ in $(seq 150); do
    docker version >/dev/null 2>&1 && break
    kill -0 "$dockerd_pid" 2>/dev/null || break
    sleep 0.2
  done
  docker version >/dev/null 2>&1 || { say "the Docker engine did not start:"; tail -n 20 "$scratch/log" >&2; }
fi

if [ -z "${VENDETTA_TEST_PROVIDERS+set}" ]; then
  VENDETTA_TEST_PROVIDERS=native
  if docker version >/dev/null 2>&1; then
    VENDETTA_TEST_PROVIDERS=docker,native
  else
    say "no Docker engine here: its tests are left out"
  fi
  if [ "$(id -u)" = 0 ] && pkg-config --exists lxc 2>/dev/null; then
    VENDETTA_TEST_PROVIDERS=$VENDETTA_TEST_PROVIDERS,lxc
  else
    say "no root, or no headers of liblxc: the tests of LXC are left out"
  fi
  if [ "$(id -u)" = 0 ] && [ "$(uname -m)" = x86_64 ] && command -v qemu-system-x86_64 >/dev/null &&
    command -v debootstrap >/dev/null && command -v apt-get >/dev/null; then
    VENDETTA_TEST_PROVIDERS=$VENDETTA_TEST_PROVIDERS,qemu
  else
    say "no root, QEMU or debootstrap, or no apt-get to fetch a kernel with: the tests of virtual machines are left out"
  fi
fi
export VENDETTA_TEST_PROVIDERS
# The kernel of virtual machines is fetched by the tests, which look it up first.
case ",$VENDETTA_TEST_PROVIDERS," in *,qemu,*)
  if [ "$may_install" = yes ] && ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
    "${sudo[@]}" apt-get update -qq
  fi
  ;;
esac
say "providers under test: ${VENDETTA_TEST_PROVIDERS:-none}"

race=(-race)
if ! command -v gcc >/dev/null; then
  race=()
  say "no gcc: the tests run without the race detector"
fi

case "${1:-test}" in
test)
  rm -rf coverage
  mkdir -p coverage/programs
  # Programs that tests start write their coverage here when they end.
  export VENDETTA_TEST_COVERDIR="$PWD/coverage/programs"
  # What needs liblxc's headers is seen by no other check.
  case ",$VENDETTA_TEST_PROVIDERS," in *,lxc,*) go vet -tags lxc ./cmd/vendetta-lxc ./providers/lxc/... ./evals/bench/... ;; esac
  go test -count=1 "${race[@]}" -timeout 30m -coverpkg=./... -coverprofile=coverage/tests.txt ./...
  : >coverage/programs.txt
  if [ -n "$(ls -A coverage/programs)" ]; then
    go tool covdata textfmt -i=coverage/programs -o=coverage/programs.txt
  fi
  cat coverage/tests.txt coverage/programs.txt >coverage/profile.txt
  ;;
bench) go run ./evals/bench -program bin/vendetta "${@:2}" ;;
soak) go run ./evals/soak -program bin/vendetta ;;
*) say "usage: $0 [test|bench|soak]" && exit 2 ;;
esac
