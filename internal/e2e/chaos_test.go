package e2e

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/wait"
)

var chaosBuilt = sync.OnceValue(func() error {
	ctx := context.Background()
	return errors.Join(
		launch.Build(ctx, binaries, "-race", "purchase-relay/internal/tools/chaos"),
		launch.Build(ctx, binaries, "github.com/nats-io/nats-server/v2"),
	)
})

// buildChaos builds the chaos tool once. In short mode it skips the test.
func buildChaos(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("part of make test-long")
	}
	if err := chaosBuilt(); err != nil {
		t.Fatal(err)
	}
}

// Chaos injects faults for a while: first every kind, then, without a sweeper, those that keep the queue's
// data. CHAOS_DURATION overrides the duration.
func TestChaos_LosesNothing(t *testing.T) {
	t.Parallel()
	buildChaos(t)
	duration := cmp.Or(os.Getenv("CHAOS_DURATION"), "60s")
	for name, keepQueue := range map[string]string{"every fault": "false", "queue kept": "true"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := readSources(); err != nil {
				t.Fatal(err)
			}
			chaos := exec.Command(filepath.Join(binaries, "chaos"),
				"-binaries", binaries, "-keep-queue="+keepQueue, "-duration", duration, "-rate", "20", "-gap", "400ms")
			chaos.Env = append(os.Environ(), "GORACE=halt_on_error=1")
			report, err := chaos.CombinedOutput()
			t.Logf("%s", report)
			if err != nil || !strings.Contains(string(report), "Nothing was lost") {
				t.Errorf("chaos: %v, want a report that nothing was lost", err)
			}
		})
	}
}

// When chaos is killed, every process that it started ends, even a frozen one.
func TestChaos_LeavesNoProcessWhenKilled(t *testing.T) {
	t.Parallel()
	if _, err := procfs.Self(); err != nil {
		t.Skip("needs /proc to list processes")
	}
	buildChaos(t)
	chaos := exec.Command(filepath.Join(binaries, "chaos"),
		"-binaries", binaries, "-duration", "60s", "-gap", "200ms", "-only", "freeze,kill")
	out, err := chaos.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := chaos.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = chaos.Process.Kill() })
	lines := bufio.NewScanner(out)
	for n := 0; n < 3 && lines.Scan(); { // some were killed and frozen
		if strings.Contains(lines.Text(), "until") {
			n++
		}
	}
	// Some of the seven parts are always down; Postgres has several processes. The command nats-server -c
	// <folder>/nats.conf names the folder of the logs.
	var started []procfs.Proc
	folder := ""
	if !wait.Until(t.Context(), timeout, 10*time.Millisecond, func() bool {
		started = descendants(t, chaos.Process.Pid)
		for _, p := range started {
			words, err := p.CmdLine()
			if err == nil && len(words) == 3 && filepath.Base(words[2]) == "nats.conf" {
				folder = filepath.Dir(words[2])
			}
		}
		return len(started) >= 8 && folder != ""
	}) {
		t.Errorf("%d processes, want at least 8 with NATS: %v", len(started), started)
	}
	if folder != "" {
		t.Cleanup(func() { _ = os.RemoveAll(folder) })
	}
	starts := make([]uint64, len(started))
	for i, p := range started {
		starts[i], _ = startTime(p)
	}
	_ = chaos.Process.Kill()
	_ = chaos.Wait()
	for i, p := range started {
		if !wait.Until(t.Context(), timeout, 10*time.Millisecond, func() bool {
			now, alive := startTime(p)
			return !alive || now != starts[i] // the id may be reused
		}) {
			t.Fatalf("process %d still runs", p.PID)
		}
	}
}

// descendants returns the living processes that a process and its children started.
func descendants(t *testing.T, pid int) (found []procfs.Proc) {
	t.Helper()
	all, err := procfs.AllProcs()
	if err != nil {
		t.Fatal(err)
	}
	children := make(map[int][]procfs.Proc)
	for _, p := range all {
		if stat, err := p.Stat(); err == nil {
			children[stat.PPID] = append(children[stat.PPID], p)
		}
	}
	for todo := children[pid]; len(todo) > 0; todo = todo[1:] {
		if _, alive := startTime(todo[0]); alive {
			found = append(found, todo[0])
		}
		todo = append(todo, children[todo[0].PID]...)
	}
	return found
}

// startTime returns the time of a process' start in the kernel's ticks.
func startTime(p procfs.Proc) (ticks uint64, alive bool) {
	stat, err := p.Stat()
	return stat.Starttime, err == nil && !slices.Contains([]string{"Z", "X"}, stat.State)
}
