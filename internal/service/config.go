// Package service is what both binaries share: flags, logging, lifecycle, health and metrics.
package service

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"strings"

	"github.com/alecthomas/kong"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"purchase-relay/internal/secret"
)

// UsageError lists every problem of a command line or a configuration. Exit status 2.
type UsageError struct{ Problems []string }

// Error implements error with one problem per line.
func (e *UsageError) Error() string {
	return "invalid command line or configuration:\n  - " + strings.Join(e.Problems, "\n  - ")
}

var (
	// ErrHelp is returned after the help was printed.
	ErrHelp = errors.New("help was printed")
	// ErrActionRequired is returned by a command that ended but leaves work to the operator. Exit status 3.
	ErrActionRequired = errors.New("action required")
)

// ExitCode prints an error to stderr and returns the exit status: 0 done, 1 failed, 2 invalid command line or
// configuration, 3 action required. context.Canceled is a failure like others: an interrupted command is not
// done, and a service returns nil when a signal stops it.
func ExitCode(err error, stderr io.Writer) int {
	var usage *UsageError
	switch {
	case err == nil, errors.Is(err, ErrHelp):
		return 0
	case errors.As(err, &usage):
		_, _ = fmt.Fprintln(stderr, err)
		return 2
	}
	_, _ = fmt.Fprintln(stderr, err)
	if errors.Is(err, ErrActionRequired) {
		return 3
	}
	return 1
}

// Scoped is a command line whose commands do not use all of its settings.
type Scoped interface {
	// Settings returns the flags of the settings that a command uses, without dashes, as patterns of path.Match;
	// nil: all. A command must not read a setting that it leaves out: its variable is ignored.
	Settings(command string) []string
}

// Parse reads a command line and the environment into cli, a pointer to a struct for kong. A flag --some-name
// is also the variable SOME_NAME (unless it is tagged noenv), and a secret may be in a file named by
// SOME_NAME_FILE. An empty variable counts as unset. command is the selected command's name. If cli is
// Scoped, the variables that the command does not use are neither read nor listed in its help.
//
// The error is ErrHelp after the help or the version was printed to out, or a *UsageError. With a *UsageError
// and a command, cli holds the valid settings; without a command, cli must not be used: its defaults are not
// set. An unknown command or flag is reported alone.
func Parse(cli any, name, description string, args []string, getenv func(string) string, out io.Writer) (
	command string, err error,
) {
	scope := newScope(cli)
	env := &environment{getenv: getenv, scope: scope}
	helped := false
	var own common
	version := fmt.Sprintf("%s %s (commit %s of %s, %s, %s/%s)", name, Version(), revision(), revisionTime(),
		runtime.Version(), runtime.GOOS, runtime.GOARCH)
	parser, err := kong.New(
		cli, kong.Name(name), kong.Description(description+exitStatuses), kong.Writers(out, out),
		kong.Embed(&own), kong.Vars{"version": version}, kong.AutoGroup(grouped), kong.Resolvers(env),
		kong.ValueFormatter(formatValue),
		kong.Exit(func(int) { helped = true; panic(ErrHelp) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true, WrapUpperBound: 110}),
		kong.Help(scope.help),
	)
	if err != nil {
		return "", fmt.Errorf("build the command line: %w", err)
	}
	defer func() {
		if helped {
			_ = recover() // from kong.Exit above
			err = ErrHelp
		}
	}()
	parsed, err := parser.Parse(args)
	if err != nil {
		problem := err.Error()
		if failed, ok := errors.AsType[*kong.ParseError](err); ok && failed.Context != nil {
			if unknown := scope.unknownWord(problem, failed.Context); unknown != "" {
				return "", &UsageError{Problems: []string{unknown}}
			}
			_ = failed.Context.Resolve()                      // kong did not get to the environment
			problem, _, _ = strings.Cut(problem, " but got ") // the word may be an address
		}
		return "", &UsageError{Problems: append(env.problems, problem)}
	}
	command, _, _ = strings.Cut(parsed.Command(), " ") // without arguments
	if command == "completion" {
		if err := writeCompletion(out, parser.Model, scope, own.Completion.Shell); err != nil {
			return "", fmt.Errorf("write the completion: %w", err)
		}
		return "", ErrHelp
	}
	for _, element := range parsed.Path {
		flag := element.Flag
		if flag == nil || element.Resolved || !isSecret(flag) || getenv(variable(flag)+"_FILE") == "" {
			continue
		}
		// The file would be followed, and replace the flag's value.
		env.add(variable(flag), fmt.Sprintf("--%s and %s_FILE are both set", flag.Name, variable(flag)))
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

Exit status: 0 done; 1 failed; 2 invalid command line or configuration; 3 action required.`

// grouped lists the settings, which all commands share, after a command's own flags.
func grouped(parent kong.Visitable, flag *kong.Flag) *kong.Group {
	if _, root := parent.(*kong.Application); root && !flag.Tag.Has("noenv") && flag.Name != "help" {
		return &kong.Group{Key: "settings", Title: "Settings:"}
	}
	return nil
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

// environment resolves flags that are not on the command line. Unlike kong's own resolver it reads getenv and
// collects every invalid value.
type environment struct {
	getenv   func(string) string
	scope    scope
	problems []string
	seen     map[string]bool
}

// Validate implements kong.Resolver.
func (e *environment) Validate(*kong.Application) error { return nil }

// Resolve implements kong.Resolver.
func (e *environment) Resolve(ctx *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if flag.Tag.Has("noenv") || !e.scope.uses(ctx.Model, commandOf(ctx), flag) {
		return nil, nil
	}
	name := variable(flag)
	value, problem := e.lookup(name, isSecret(flag))
	if problem == "" && value != "" {
		// Parsed into a scratch value first: kong would stop at an invalid one.
		scratch := reflect.New(flag.Target.Type()).Elem()
		token := kong.Token{Type: kong.FlagValueToken, Value: value}
		if err := flag.Parse(kong.ScanFromTokens(token), scratch); err != nil {
			problem = fmt.Sprintf("%s: %s", name, strings.TrimPrefix(err.Error(), "--"+flag.Name+": "))
		} else if flag.Enum != "" && !flag.EnumMap()[value] {
			problem = fmt.Sprintf("%s: %q is not one of %s", name, value, flag.Enum)
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

// Secret reads one secret as Parse does, from a variable or a file.
func Secret(getenv func(string) string, name string) (value secret.String, problem string) {
	text, problem := (&environment{getenv: getenv}).lookup(name, true)
	return secret.String(text), problem
}

// add keeps a problem once: kong resolves a flag several times.
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
		return "", fmt.Sprintf("%s and %s_FILE are both set", name, name)
	}
	text, err := readSecret(file)
	if err != nil {
		return "", fmt.Sprintf("%s_FILE: %v", name, err)
	}
	return text.Reveal(), ""
}

// Loopback reports whether only this machine can reach a listener's address. An empty host is every address.
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

// LogConfig is the part of a configuration about logging.
type LogConfig struct {
	LogLevel  string `default:"info" enum:"debug,info,warn,error" help:"Log level: debug, info, warn, error."`
	LogFormat string `default:"json" enum:"json,console" help:"Log format: json or console."`
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

// IsTerminal reports whether out is a terminal.
func IsTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
