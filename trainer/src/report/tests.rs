use super::*;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    put("config.toml", "[train]\nsteps = 400\n[data]\ndir = \"a<b>&c\"\n");
    let line = |step: u64| {
        let loss = 6.0 / step as f64;
        format!(
            "{{\"step\":{step},\"loss_d\":{loss},\"loss_g\":null,\"images_per_s\":100,\
             \"sigma_g\":1.5,\"data_wait_percent\":0.5}}\n"
        )
    };
    put("stats.jsonl", &((1..=200).map(line).collect::<String>() + "{\"step\":20"));
    let incident = "{\"step\":150,\"incident\":\"samples_alike\",\"text\":\"<script>1 & 2\"}\n";
    put("incidents.jsonl", incident);
    put("metrics.jsonl", "{\"metric\":\"fid\",\"step\":200,\"value\":12.34567}\n");
    put("evaluations.jsonl", "{\"metric\":\"knn\",\"step\":200,\"value\":65.4321}\n");
    fs::create_dir(folder.path().join("images")).unwrap();
    for name in ["samples", "samples-00000100", "samples-00000050", "reals"] {
        let path = folder.path().join("images").join(format!("{name}.png"));
        image::RgbImage::new(4, 4).save(path).unwrap();
    }
    folder
}

#[test]
fn a_url_s_password_is_not_in_the_page_of_a_run_of_another_version() {
    let folder = folder();
    let config = "[data]\ndir = \"https://user:hunter2@host/x\"\n[newer]\nkey = 1\n";
    fs::write(folder.path().join("config.toml"), config).unwrap();
    let page = html(folder.path()).unwrap();
    assert!(page.contains("host/x") && !page.contains("hunter2"));
}

/// Every opened element is closed, in order.
fn balanced(page: &str) {
    let mut open = vec![];
    // What the script holds is not markup.
    let (before, rest) = page.split_once("<script>").unwrap();
    let (_, after) = rest.split_once("</script>").unwrap();
    let markup = [before, after].concat();
    for tag in markup.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap_or_default();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/')
            && !["!DOCTYPE", "meta", "img", "input", "link"].contains(&name)
        {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[test]
fn there_is_no_report_of_a_folder_that_is_no_run() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(html(folder.path()), Err(Error::Output { .. })));
    // Of another program.
    fs::write(folder.path().join("config.toml"), "[server]\nport = 80\n").unwrap();
    assert!(matches!(html(folder.path()), Err(Error::Output { .. })));
    // Of a run, cut since.
    fs::write(folder.path().join("config.toml"), "[trai").unwrap();
    fs::write(folder.path().join("stats.jsonl"), "").unwrap();
    html(folder.path()).unwrap();
}

#[test]
fn a_report_holds_everything_within_itself() {
    let folder = folder();
    let page = fs::read_to_string(write(folder.path()).unwrap()).unwrap();
    for section in
        ["Incidents", "Training", "Health", "Throughput", "Pictures", "Metrics", "Settings"]
    {
        assert!(page.contains(&format!("<h2>{section}</h2>")), "{section}");
    }
    assert!(!page.contains("://") && !page.contains("url("));
    for source in page.split("src=\"").skip(1) {
        assert!(source.starts_with("data:image/png;base64,"));
    }
    assert_eq!(page.matches("<img ").count(), 4);
    let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("no {what}"));
    assert!(at("alt=\"step 50\"") < at("alt=\"step 100\""));
    assert!(at("alt=\"step 100\"") < page.rfind("alt=\"newest\"").unwrap());
    let escaped = ["a&lt;b&gt;&amp;c", "&lt;script&gt;1 &amp; 2"];
    for text in ["step 200 of 400", "12.35", "65.43"].into_iter().chain(escaped) {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("<script>1"), "an incident's words are no markup");
    balanced(&page);
    // Every chart that the script draws has its place, and the incident is marked in all.
    let (_, data) = page.split_once("id=\"data\">").unwrap();
    let data: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    let charts = data["charts"].as_array().unwrap();
    assert_eq!(charts.len(), page.matches("data-chart=").count());
    let titles: Vec<_> = charts.iter().map(|chart| chart["title"].as_str().unwrap()).collect();
    let expected = [
        "Losses",
        "Fréchet distance",
        "Largest singular value",
        "Images a second",
        "Waiting for data",
    ];
    assert_eq!(titles, expected);
    let minutes =
        serde_json::json!({"step": 150.0, "minutes": 0.0, "text": "step 150: samples_alike"});
    assert_eq!(data["marks"], serde_json::json!([minutes]));
}

#[test]
fn of_more_incidents_than_a_curve_can_mark_some_are_the_newest_among_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("incidents.jsonl");
    let line = |step| format!("{{\"step\":{step},\"incident\":\"x\"}}\n");
    fs::write(&path, (1..=5000).map(line).collect::<String>()).unwrap();
    let marks = Incidents::read(&path).marks(&Series::default());
    assert!((MARKS / 2..=MARKS).contains(&marks.len()), "{}", marks.len());
    assert_eq!((marks[0].step, marks[marks.len() - 1].step), (1.0, 5000.0));
}

#[test]
fn a_run_that_has_only_begun_has_a_report_and_another_folder_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let error = html(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.toml"), "{error}");
    fs::write(folder.path().join("config.toml"), "").unwrap();
    let page = html(folder.path()).unwrap();
    assert!(page.contains("no statistics yet") && page.contains("step 0"), "{page}");
    balanced(&page);
}

#[test]
fn of_many_incidents_the_newest_are_listed() {
    let folder = folder();
    let line = |step| format!("{{\"step\":{step},\"incident\":\"not_finite\"}}\n");
    let text: String = (1..=1000).map(line).collect();
    fs::write(folder.path().join("incidents.jsonl"), text).unwrap();
    let page = html(folder.path()).unwrap();
    assert_eq!(page.matches("<li>").count(), INCIDENTS);
    assert!(page.contains("step 801<") && !page.contains("step 800<"), "{page}");
    assert!(page.contains("and 800 before these"), "{page}");
    balanced(&page);
}

#[test]
fn numbers_are_short_and_ticks_are_round() {
    let texts = [0.0, 0.05, 1.0, 12.345678, 999.96, 31415.9, 2.5e7, 1e-9].map(short);
    assert_eq!(texts, ["0", "0.05", "1", "12.35", "1000", "31416", "2.5e7", "1.0e-9"]);
    assert_eq!([500.0, 12_000.0, 1.5e6].map(compact), ["500", "12k", "1.5M"]);
}
