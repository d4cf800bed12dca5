// Package service is what both binaries share: flags, logging, lifecycle, health and metrics.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"purchase-relay/internal/secret"
)

// UsageError lists every problem of a call or a configuration. Exit status 2.
type UsageError struct{ Problems []string }

// Error lists the problems, one a line.
func (e *UsageError) Error() string {
	return "the configuration cannot be used:\n  - " + strings.Join(e.Problems, "\n  - ")
}

var (
	// ErrHelp follows the printed help.
	ErrHelp = errors.New("help was printed")
	// ErrLeft follows work that is done but leaves something to the operator. Exit status 3.
	ErrLeft = errors.New("done, but something is left")
)

// ExitCode prints an error to stderr and returns the exit status: 0 done, 1 failed, 2 usage or configuration,
// 3 done but something is left. Cancellation is no failure: an error that is context.Canceled and nothing
// else is 0.
func ExitCode(err error, stderr io.Writer) int {
	var usage *UsageError
	switch {
	case err == nil, errors.Is(err, ErrHelp), onlyCanceled(err):
		return 0
	case errors.As(err, &usage):
		_, _ = fmt.Fprintln(stderr, err)
		return 2
	}
	_, _ = fmt.Fprintln(stderr, err)
	if errors.Is(err, ErrLeft) {
		return 3
	}
	return 1
}

// onlyCanceled reports whether each part of a joined error is context.Canceled. errors.Is would accept one,
// and hide a failure beside it.
func onlyCanceled(err error) bool {
	switch wrapped := err.(type) { //nolint:errorlint // this walks the tree itself, link by link
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(wrapped.Unwrap(), func(part error) bool { return !onlyCanceled(part) })
	case interface{ Unwrap() error }:
		return onlyCanceled(wrapped.Unwrap())
	}
	return err == context.Canceled //nolint:errorlint // the end of the chain
}

// Parse reads a command line and the environment into cli, a pointer to a struct in kong's form. A flag
// --some-name is also the variable SOME_NAME (unless it is tagged noenv), and a secret is also a file named
// by SOME_NAME_FILE. An empty variable is an unset one. command is the chosen command's name. The error is
// ErrHelp, after the help or the version was printed to out, or a *UsageError with all problems of the
// environment; then cli and command are filled as far as they are known.
func Parse(cli any, name, description string, args []string, getenv func(string) string, out io.Writer) (
	command string, err error,
) {
	env := &environment{getenv: getenv}
	helped := false
	var own common
	version := fmt.Sprintf("%s %s (commit %s, %s, %s/%s)", name, Version(), revision(), runtime.Version(),
		runtime.GOOS, runtime.GOARCH)
	parser, err := kong.New(
		cli, kong.Name(name), kong.Description(description+exitStatuses), kong.Writers(out, out),
		kong.Embed(&own), kong.Vars{"version": version}, kong.AutoGroup(grouped), kong.Resolvers(env),
		kong.ValueFormatter(formatValue),
		kong.Exit(func(int) { helped = true; panic(ErrHelp) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true, WrapUpperBound: 110}),
	)
	if err != nil {
		return "", fmt.Errorf("build the command line: %w", err)
	}
	defer func() {
		if helped {
			_ = recover() // kong's way to end after the help, instead of os.Exit
			err = ErrHelp
		}
	}()
	parsed, err := parser.Parse(args)
	if err != nil {
		if wrong := new(kong.ParseError); errors.As(err, &wrong) && wrong.Context != nil {
			_ = wrong.Context.Resolve() // a bad flag ends kong before it looks at the environment
		}
		return "", &UsageError{Problems: append(env.problems, withoutArgument(err))}
	}
	command, _, _ = strings.Cut(parsed.Command(), " ") // without its arguments' names
	if command == "completion" {
		if err := writeCompletion(out, parser.Model, own.Completion.Shell); err != nil {
			return "", fmt.Errorf("write the completion: %w", err)
		}
		return "", ErrHelp
	}
	if len(env.problems) > 0 {
		return command, &UsageError{Problems: env.problems}
	}
	return command, nil
}

// exitStatuses end the description of every program.
const exitStatuses = `

Settings are flags or variables: --some-name is $SOME_NAME. $SOME_NAME_FILE may name a file with a secret.
"NAME COMMAND --help" describes a command.

Exit status: 0 done; 1 failed; 2 wrong call or configuration, with every problem; 3 done, but work is left.`

// grouped lists the settings, which all commands share, after a command's own flags.
func grouped(parent kong.Visitable, flag *kong.Flag) *kong.Group {
	if _, root := parent.(*kong.Application); root && !flag.Tag.Has("noenv") && flag.Name != "help" {
		return &kong.Group{Key: "settings", Title: "Settings:"}
	}
	return nil
}

// withoutArgument returns kong's message without the argument at its end, which may be a customer's address.
func withoutArgument(err error) string {
	message, _, repeats := strings.Cut(err.Error(), "unexpected argument ")
	if repeats {
		return message + "unexpected argument or unknown command"
	}
	message, _, _ = strings.Cut(message, " but got ")
	return message
}

func variable(flag *kong.Flag) string {
	return strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
}

func isSecret(flag *kong.Flag) bool { return flag.Target.Type() == reflect.TypeFor[secret.String]() }

func formatValue(value *kong.Value) string {
	help := kong.DefaultHelpValueFormatter(value)
	flag := value.Flag
	switch {
	case flag == nil || flag.Name == "help" || flag.Tag.Has("noenv"):
		return help
	case isSecret(flag):
		return fmt.Sprintf("%s ($%s, $%s_FILE)", help, variable(flag), variable(flag))
	default:
		return fmt.Sprintf("%s ($%s)", help, variable(flag))
	}
}

// environment is kong's resolver of flags that were not given. kong's own reads the process' environment and
// stops at the first bad value; this one reads getenv and collects.
type environment struct {
	getenv   func(string) string
	problems []string
	seen     map[string]bool
}

// Validate implements kong.Resolver.
func (e *environment) Validate(*kong.Application) error { return nil }

// Resolve implements kong.Resolver.
func (e *environment) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if flag.Tag.Has("noenv") {
		return nil, nil
	}
	name := variable(flag)
	value, problem := e.lookup(name, isSecret(flag))
	if problem == "" && value != "" {
		// Into a scratch value first: a bad one is collected instead of ending kong.
		scratch := reflect.New(flag.Target.Type()).Elem()
		token := kong.Token{Type: kong.FlagValueToken, Value: value}
		if err := flag.Parse(kong.ScanFromTokens(token), scratch); err != nil {
			problem = fmt.Sprintf("%s: %s", name, strings.TrimPrefix(err.Error(), "--"+flag.Name+": "))
		} else if flag.Enum != "" && !flag.EnumMap()[value] {
			problem = fmt.Sprintf("%s: %q is none of %s", name, value, flag.Enum)
		}
	}
	if problem != "" {
		e.add(name, problem)
		return nil, nil
	}
	if value == "" {
		return nil, nil
	}
	return value, nil
}

// Secret reads one secret as Parse does: a variable, or a file named by another.
func Secret(getenv func(string) string, name string) (value secret.String, problem string) {
	text, problem := (&environment{getenv: getenv}).lookup(name, true)
	return secret.String(text), problem
}

// add keeps a problem once: kong resolves several times.
func (e *environment) add(name, problem string) {
	if e.seen == nil {
		e.seen = make(map[string]bool)
	}
	if !e.seen[name] {
		e.seen[name] = true
		e.problems = append(e.problems, problem)
	}
}

func (e *environment) lookup(name string, isSecret bool) (value, problem string) {
	value = e.getenv(name)
	if !isSecret {
		return value, ""
	}
	file := e.getenv(name + "_FILE")
	switch {
	case file == "":
		return value, ""
	case value != "":
		return "", fmt.Sprintf("%s and %s_FILE are both set: choose one", name, name)
	}
	text, err := readSecret(file)
	if err != nil {
		return "", fmt.Sprintf("%s_FILE: %v", name, err)
	}
	return text.Reveal(), ""
}

// Loopback reports whether a listener's address can be reached from this machine alone. An empty host is
// every address.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// LogConfig is how to log; both binaries' configurations hold it.
type LogConfig struct {
	LogLevel  string `default:"info" enum:"debug,info,warn,error" help:"debug, info, warn or error."`
	LogFormat string `default:"json" enum:"json,console" help:"json for machines, console for people."`
}

// Logger returns a logger that writes to out.
func (c LogConfig) Logger(out io.Writer) *zap.Logger {
	level, err := zapcore.ParseLevel(c.LogLevel)
	if err != nil {
		level = zapcore.InfoLevel
	}
	keys := zapcore.EncoderConfig{
		TimeKey: "ts", LevelKey: "level", MessageKey: "msg", NameKey: "logger", StacktraceKey: "stack",
		EncodeTime:  zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00"),
		EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeDuration: zapcore.StringDurationEncoder,
	}
	encoder := zapcore.NewJSONEncoder(keys)
	if c.LogFormat == "console" {
		encoder = zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(out)), level))
}

// Terminal reports whether out is a terminal: a progress bar in a file is noise.
func Terminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
