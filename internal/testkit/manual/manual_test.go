package manual_test

import (
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/manual"
)

const root = "../../.."

const help = `Usage: thing <command> [flags]

Commands:
  serve      Do it
             at length.
  send-test  Once.

Flags:
  -h, --help                       Show context-sensitive help.
      --api-token=TEXT             A token, as long as
                                   you like. Required. ($API_TOKEN,
                                   $API_TOKEN_FILE)
      --url="http://a/b"
                                   Where. ($URL)
      --modes=one,...              Which. ($MODES)
      --[no-]fast                  Hurry. ($FAST)
      --silence=DURATION           How long. ($SILENCE)
      --since=DURATION             Of a command, without a variable.
      --version                    Print the version and exit.

Run "thing <command> --help" for more information on a command.
`

func TestParse(t *testing.T) {
	want := []manual.Variable{
		{Name: "API_TOKEN", File: true, Help: "A token, as long as you like. Required."},
		{Name: "URL", Default: "http://a/b", Help: "Where."},
		{Name: "MODES", Default: "one", Help: "Which."},
		{Name: "FAST", Help: "Hurry."},
		{Name: "SILENCE", Help: "How long."},
	}
	if got := manual.Parse(help); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if got := manual.Commands(help); !slices.Equal(got, []string{"serve", "send-test"}) {
		t.Errorf("%v", got)
	}
}

// A variable that nobody has written down is told of with the lines to write, and one that is gone, too.
func TestProblemsSayWhatToWrite(t *testing.T) {
	all := strings.Join(manual.Problems(root, "ingest", []manual.Variable{
		{Name: "NEW_THING", Default: "7", File: true, Help: "It is new."}, {Name: "LOG_LEVEL", Default: "debug"},
	}), "\n")
	for _, want := range []string{
		"| `NEW_THING` | `7` | file | It is new. |", "#NEW_THING=7", "      NEW_THING: ${NEW_THING:-}",
		`LOG_LEVEL is by default "info"`, "docs/configuration.md has INGEST_ADDR, which ingest does not take", "docker-compose.yml tells ingest INGEST_ADDR",
		"docs/configuration.md has NATS_URL for both binaries",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing says %q", want)
		}
	}
}

// What the containers read from .env is in .env.example, and nothing there is without a reader.
func TestExampleIsWhatTheContainersRead(t *testing.T) {
	compose, err := manual.ReadCompose(root)
	if err != nil {
		t.Fatal(err)
	}
	example, _, err := manual.Example(root)
	if err != nil {
		t.Fatal(err)
	}
	known, err := manual.Documented(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range compose.Interpolated {
		if shown, ok := example[name]; !ok {
			t.Errorf(".env.example lacks %s, which docker-compose.yml reads. With a comment:\n#%s=%s", name, name, value)
		} else if !known[name] && value != "" && shown != value && !strings.Contains(shown, "…") {
			t.Errorf(".env.example shows %s=%s, docker-compose.yml has %s", name, shown, value)
		}
	}
	for name := range example {
		if _, ok := compose.Interpolated[name]; !ok && !known[name] {
			t.Errorf(".env.example has %s, which nobody reads", name)
		}
	}
}
