package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/wait"
)

// Everything is broken for a short time (`make chaos` does it for longer): once with every fault there is, once without a sweeper and
// with only those by which the queue loses nothing.
func TestChaos(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"all", "kept"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			if err := readSources(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			chaos := exec.Command(filepath.Join(binaries, "chaos"), "-binaries", binaries, "-mode", mode, "-duration", "12s", "-rate", "20", "-gap", "400ms")
			chaos.Env = append(os.Environ(), "GORACE=halt_on_error=1")
			text, err := chaos.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, text)
			}
			if !strings.Contains(string(text), "Nothing was lost") {
				t.Error("the report does not say that all is well")
			}
			t.Logf("%s\nin %s", text, time.Since(began).Round(time.Second))
		})
	}
}

// Chaos is killed in the middle: everything that it had started ends with it, whatever state that was in.
func TestKilledChaosLeavesNothing(t *testing.T) {
	t.Parallel() // it waits, mostly
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("processes are looked for under /proc")
	}
	chaos := exec.Command(filepath.Join(binaries, "chaos"), "-binaries", binaries, "-duration", "60s", "-gap", "200ms", "-only", "freeze,kill")
	out, err := chaos.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := chaos.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = chaos.Process.Kill() })
	lines := bufio.NewScanner(out)
	for n := 0; n < 3 && lines.Scan(); { // some have been killed and frozen
		if strings.Contains(lines.Text(), "until") {
			n++
		}
	}
	// Each part has one process at least: six of the product and its neighbours, and what Postgres and the faults add. At any one
	// moment some of them are killed and not yet started again, so this waits for a moment at which most are there.
	var started map[int]string
	most := wait.Until(t.Context(), patience, 10*time.Millisecond, func() bool {
		started = below(t, chaos.Process.Pid)
		return len(started) >= 8
	})
	for pid := range started {
		// nats-server -c <folder>/nats.conf
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if words := strings.Split(string(line), "\x00"); err == nil && len(words) > 2 && filepath.Base(words[2]) == "nats.conf" {
			t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(words[2])) }) // its logs
		}
	}
	if !most {
		t.Errorf("never were most of its parts there at once; at last %d: %v", len(started), started)
	}
	_ = chaos.Process.Kill()
	_ = chaos.Wait()
	over := time.Now().Add(patience)
	for pid, born := range started {
		for alive(pid) == born {
			if time.Now().After(over) {
				t.Fatalf("process %d is left", pid)
			}
		}
	}
}

// below lists the processes that a process started, and they in turn, with the time of each one's start.
func below(t *testing.T, parent int) map[int]string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	children := make(map[int][]int)
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if fields := statOf(pid); fields != nil {
				if up, err := strconv.Atoi(fields[1]); err == nil {
					children[up] = append(children[up], pid)
				}
			}
		}
	}
	found := make(map[int]string)
	for todo := []int{parent}; len(todo) > 0; todo = todo[1:] {
		for _, pid := range children[todo[0]] {
			if born := alive(pid); born != "" {
				found[pid] = born
			}
			todo = append(todo, pid)
		}
	}
	return found
}

// alive is when a process was started; "": it is none, or has ended.
func alive(pid int) string {
	fields := statOf(pid)
	if fields == nil || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// statOf reads what the kernel says of a process, from its state on; nil: it has ended.
func statOf(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, after, _ := strings.Cut(string(data), ") ") // the name may hold anything
	fields := strings.Fields(after)
	if len(fields) < 20 {
		return nil
	}
	return fields
}
