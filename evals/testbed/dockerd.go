package testbed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/client"
)

// dockerdPatience is how long an engine may take to answer after its start.
const dockerdPatience = 60 * time.Second

// Docker returns the address of a Docker engine. It is the environment's when
// that answers; else an engine of this test process's own, which is started with
// the first call and stopped, with all it has, when the process is gone. That
// needs root.
func Docker(t testing.TB) string {
	t.Helper()
	host, err := dockerHost()
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// dockerHost finds or starts this process's engine, once.
var dockerHost = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dockerdPatience) //nolint:forbidigo // the engine is the process's, not the caller's who came first
	defer cancel()
	host := os.Getenv(client.EnvOverrideHost)
	if host == "" {
		host = client.DefaultDockerHost
	}
	if err := ping(ctx, host); err == nil {
		return host, nil
	}
	return startDockerd(ctx)
})

// ping asks an engine whether it is there.
func ping(ctx context.Context, host string) error {
	engine, err := client.NewClientWithOpts(client.FromEnv, client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		return err
	}
	defer func() { _ = engine.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err = engine.Info(ctx)
	return err
}

// keeper runs an engine until its standard input ends, which it does with the
// process that holds the other end, however that goes, and then removes all that
// the engine made. Its arguments: the folder, the bridge, its address.
const keeper = `
dir=$1 bridge=$2 address=$3
PATH=$PATH:/usr/sbin:/sbin
ip link add "$bridge" type bridge && ip addr add "$address" dev "$bridge" && ip link set "$bridge" up || exit 1
dockerd --host "unix://$dir/docker.sock" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" \
	--bridge "$bridge" --iptables=false --ip6tables=false --ip-masq=false --max-download-attempts 1 </dev/null &
engine=$!
cat >/dev/null
kill "$engine"
wait "$engine"
ip link del "$bridge"
rm -rf "$dir"
`

// keepers hold the standard inputs of keepers, lest they are collected and closed.
var keepers []io.WriteCloser

// startDockerd starts an engine with folders and a bridge of its own. It touches
// no packet filter: containers reach this machine and each other alone.
func startDockerd(ctx context.Context) (string, error) {
	if os.Getuid() != 0 {
		return "", errors.New("no docker engine answers, and starting one needs root")
	}
	dir, err := os.MkdirTemp("", "vd")
	if err != nil {
		return "", fmt.Errorf("start dockerd: %w", err)
	}
	id := make([]byte, 4)
	_, _ = rand.Read(id)
	logged, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return "", fmt.Errorf("start dockerd: %w", err)
	}
	defer func() { _ = logged.Close() }()
	address, err := freeNetwork()
	if err != nil {
		return "", fmt.Errorf("start dockerd: %w", err)
	}
	run := exec.Command("sh", "-c", keeper, "dockerd-keeper", dir, "vd"+hex.EncodeToString(id), address)
	run.Stdout, run.Stderr = logged, logged
	run.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := run.StdinPipe()
	if err != nil {
		return "", fmt.Errorf("start dockerd: %w", err)
	}
	if err := run.Start(); err != nil {
		return "", fmt.Errorf("start dockerd: %w", err)
	}
	keepers = append(keepers, stdin)
	host := "unix://" + filepath.Join(dir, "docker.sock")
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		if err = ping(ctx, host); err == nil {
			return host, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			said, _ := os.ReadFile(logged.Name())
			_ = stdin.Close()
			return "", fmt.Errorf("start dockerd: %w\n%s", err, said)
		}
	}
}

// freeNetwork returns an address in a network of 10.0.0.0/8 that no interface
// of this machine is in.
func freeNetwork() (string, error) {
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	pick := make([]byte, 2)
candidates:
	for range 100 {
		_, _ = rand.Read(pick)
		candidate := net.IPv4(10, pick[0], pick[1], 1)
		for _, address := range taken {
			if network, ok := address.(*net.IPNet); ok && network.Contains(candidate) {
				continue candidates
			}
		}
		return candidate.String() + "/24", nil
	}
	return "", errors.New("no free network in 10.0.0.0/8")
}
