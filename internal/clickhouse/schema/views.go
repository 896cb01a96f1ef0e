package schema

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// renewViews creates the outdated views again and returns their names.
func (s *Schema) renewViews(ctx context.Context) ([]string, error) {
	state, err := s.schemaState(ctx)
	if err != nil {
		return nil, err
	}
	names := slices.Sorted(maps.Keys(state.views))
	for _, name := range names {
		if err := s.define(ctx, state.views[name]); err != nil {
			return nil, fmt.Errorf("view %s: %w", name, err)
		}
	}
	return names, nil
}

// viewPattern matches a statement that creates a view, and finds its name.
var viewPattern = regexp.MustCompile(`^CREATE OR REPLACE VIEW (\w+)`)

// viewComment returns the comment of a view that the migration creates. If several
// migrations define a view, the comment tells which one created it.
func viewComment(m Migration) string { return "sluice migration " + m.Name }

// commented adds the comment to a statement that creates a view. It returns other
// statements unchanged.
func (m *Migration) commented(statement string) string {
	if !viewPattern.MatchString(statement) {
		return statement
	}
	return statement + "\nCOMMENT '" + viewComment(*m) + "'"
}

// outdatedViews returns the statements of the views that are missing, or that were
// created by an older migration than the last one that defines them.
func (s *Schema) outdatedViews(ctx context.Context) (map[string]string, error) {
	migrations, err := Migrations()
	if err != nil {
		return nil, err
	}
	statements, comments := make(map[string]string), make(map[string]string)
	for _, m := range migrations {
		for _, statement := range m.statements {
			if view := viewPattern.FindStringSubmatch(statement); view != nil {
				statements[view[1]], comments[view[1]] = m.commented(statement), viewComment(m)
			}
		}
	}
	var name, comment proto.ColStr
	err = s.db.Query(ctx, conn.RoleAdmin, "views", s.cfg.QueryTimeout, ch.Query{
		Body:       "SELECT name, comment FROM system.tables WHERE database = {database:String} AND engine = 'View'",
		Parameters: conn.Parameters{}.Text("database", s.cfg.Database),
		Result:     proto.Results{{Name: "name", Data: &name}, {Name: "comment", Data: &comment}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range name.Rows() {
				if comments[name.Row(i)] == comment.Row(i) {
					delete(statements, name.Row(i))
				}
			}
			return nil
		},
	})
	return statements, err
}
