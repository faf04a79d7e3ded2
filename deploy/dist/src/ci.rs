//! The recipes of CI say what the tree says of them. Their syntax is checked by ./test, with actionlint and
//! the schemas of both systems.

const RECIPES: [(&str, &str); 2] = [
    ("GitHub", include_str!("../../../.github/workflows/ci.yml")),
    ("GitLab", include_str!("../../../.gitlab-ci.yml")),
];

#[test]
fn both_recipes_run_what_everybody_runs() {
    for (name, text) in RECIPES {
        for command in ["./test --yes\n", "deploy/release target/deploy\n", "deploy/release notes "] {
            assert!(text.contains(command), "{name}: {command}");
        }
    }
}

#[test]
fn actions_are_pinned_and_nothing_is_allowed_that_is_not_needed() {
    let (_, github) = RECIPES[0];
    let uses: Vec<&str> =
        github.lines().filter_map(|line| line.split_once("uses: ")).map(|pair| pair.1).collect();
    assert!(!uses.is_empty());
    for action in uses {
        let hash = action.split_once('@').map(|pair| pair.1).unwrap_or_default();
        assert!(hash.len() == 40 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{action}");
    }
    assert_eq!(github.matches("permissions:\n").count(), 2);
    assert_eq!(github.matches(": write").count(), 1, "the job that drafts a release");
    assert!(github.contains("\npermissions:\n  contents: read\n"));
    assert_eq!(
        github.matches("persist-credentials: false").count(),
        github.matches("actions/checkout@").count()
    );
    for (name, text) in RECIPES {
        assert!(!text.contains("secrets.") && !text.contains("://"), "{name} names a secret or a host");
    }
}
