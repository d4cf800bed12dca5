package e2e

import (
	"bufio"
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"purchase-relay/internal/testkit/wait"
)

// Everything is broken for a while: once with every kind of fault, once with those that keep the queue's
// data, without a sweeper.
func TestChaos(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("part of make test-long")
	}
	duration := cmp.Or(os.Getenv("CHAOS_DURATION"), "60s")
	for _, mode := range []string{"all", "kept"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			if err := readSources(); err != nil {
				t.Fatal(err)
			}
			chaos := exec.Command(filepath.Join(binaries, "chaos"),
				"-binaries", binaries, "-mode", mode, "-duration", duration, "-rate", "20", "-gap", "400ms")
			chaos.Env = append(os.Environ(), "GORACE=halt_on_error=1")
			report, err := chaos.CombinedOutput()
			t.Logf("%s", report)
			if err != nil || !strings.Contains(string(report), "Nothing was lost") {
				t.Errorf("chaos failed: %v", err)
			}
		})
	}
}

// When chaos is killed, everything that it started ends, in whatever state it is.
func TestKilledChaosLeavesNothing(t *testing.T) {
	t.Parallel()
	if _, err := procfs.Self(); err != nil {
		t.Skip("processes are listed from /proc")
	}
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
	// Of the seven parts, Postgres with several processes, some are always killed and not yet started again. The
	// command nats-server -c <folder>/nats.conf names the folder of the logs.
	var started []procfs.Proc
	folder := ""
	if !wait.Until(t.Context(), patience, 10*time.Millisecond, func() bool {
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
	births := make([]uint64, len(started))
	for i, p := range started {
		births[i], _ = birth(p)
	}
	_ = chaos.Process.Kill()
	_ = chaos.Wait()
	for i, p := range started {
		if !wait.Until(t.Context(), patience, 10*time.Millisecond, func() bool {
			now, alive := birth(p)
			return !alive || now != births[i] // the id may be another process' by now
		}) {
			t.Fatalf("process %d is left", p.PID)
		}
	}
}

// descendants lists the living processes below one.
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
		if _, alive := birth(todo[0]); alive {
			found = append(found, todo[0])
		}
		todo = append(todo, children[todo[0].PID]...)
	}
	return found
}

// birth returns the time of a process' start in the kernel's ticks.
func birth(p procfs.Proc) (ticks uint64, alive bool) {
	stat, err := p.Stat()
	return stat.Starttime, err == nil && !slices.Contains([]string{"Z", "X"}, stat.State)
}
